"""The collapse laboratory: small trainings with known faults, and without."""
