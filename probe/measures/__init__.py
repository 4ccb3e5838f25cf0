"""What is measured: attention by type, attribution, cost, logit lens; and verify."""
