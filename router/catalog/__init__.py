"""The models that may be served: repositories, candidates, and each candidate's profile before loading."""
