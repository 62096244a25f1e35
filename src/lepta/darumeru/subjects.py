"""The 57 subjects of MMLU (Hendrycks et al. 2021): their four categories, and their Russian names."""

from lepta.core.shipped import shipped_data

_BY_CATEGORY: dict[str, dict[str, str]] = shipped_data("darumeru/subjects.yaml")

CATEGORIES = tuple(_BY_CATEGORY)
RUSSIAN_NAMES: dict[str, str] = {}
CATEGORY_OF: dict[str, str] = {}
for _category, _names in _BY_CATEGORY.items():
    RUSSIAN_NAMES |= _names
    CATEGORY_OF |= dict.fromkeys(_names, _category)
SUBJECTS = tuple(sorted(CATEGORY_OF))
