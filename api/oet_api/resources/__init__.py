"""The resources: what each path takes and answers. They see the ports only, never an engine."""
