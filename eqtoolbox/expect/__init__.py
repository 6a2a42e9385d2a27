"""Expectations: what annotations say of arguments, checked when a public function is called."""
