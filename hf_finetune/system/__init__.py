"""The machine: processes, signals, files, locations, printed lines, and the user's errors."""
