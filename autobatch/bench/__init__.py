"""`autobatch bench`: a report for a device, on models of known sizes."""
