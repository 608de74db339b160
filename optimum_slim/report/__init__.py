"""What a run has to tell, as rows."""
