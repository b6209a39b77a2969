"""Helpers with no protocol in them: durable writes, image files, pipelines."""
