"""What all that speaks over the network shares."""
