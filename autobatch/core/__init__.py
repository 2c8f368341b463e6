"""The types that all rooms share: frozen plans, facts and measurements, units, files. No torch and no hardware."""
