"""What every other room speaks in: frozen plans, facts and measurements, units, files. No torch, no hardware."""
