"""What pages and API do; neither does anything that the other could not."""
