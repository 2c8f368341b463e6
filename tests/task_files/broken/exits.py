import sys

if len(sys.argv) != 0:
    sys.exit(2)
