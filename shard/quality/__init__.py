"""Agreement and certificates. Imports msgspec only, so that the router may use them."""
