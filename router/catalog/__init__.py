"""What may be served: repositories, candidates, and what is known of each before it is loaded."""
