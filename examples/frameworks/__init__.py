"""Connectors for LangChain, LlamaIndex and Haystack: documents go in, citations come out, whole and streamed.

Their own classes for OpenAI's API reach the endpoint too, through `extra_body`, but drop the citations on the way.
"""
