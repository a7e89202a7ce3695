"""The operations of a decoder that torch has no single fast operator for, once per kind of device."""
