"""Files and the Hub."""
