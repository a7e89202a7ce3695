"""A decoder's operations without a single fast operator in torch, implemented for each kind of device."""
