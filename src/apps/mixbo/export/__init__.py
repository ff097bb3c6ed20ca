"""Search spaces for tools other than ours."""
