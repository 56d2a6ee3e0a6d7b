"""Files on disk: written whole or not at all, locks, processes, fingerprints, stopping."""
