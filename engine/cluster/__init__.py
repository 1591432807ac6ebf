"""Who this process is among others, and how processes end and agree."""
