"""Anyone's exposure log, read as rows: by replay, experiments and playback."""
