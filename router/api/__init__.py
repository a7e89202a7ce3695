"""The HTTP routes: TGI native, OpenAI, and operation."""
