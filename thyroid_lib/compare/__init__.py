"""Tables of a study, intervals, stability, selection, model card, replication."""
