"""Agreement and certificates; msgspec only, so that the router may read them."""
