"""The recipes that ship: name -> where it is. A new one is its module, its test and a line here."""

RECIPES: dict[str, str] = {
    "mnist": "evener.recipes.mnist:mnist",
}
