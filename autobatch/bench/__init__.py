"""`autobatch bench`: a report for a device, on models whose sizes are known."""
