"""World: the processes that train one model together, and what each of them holds of it."""
