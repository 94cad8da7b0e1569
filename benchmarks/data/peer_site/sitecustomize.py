"""Lets the newest Megatron-LM, which asks for Python 3.12, start on 3.11: the one name that it takes from there.

Place in the flow: on PYTHONPATH of the peer's processes only. Invariant: nothing that is measured is changed.
"""

import typing

if not hasattr(typing, "override"):
    from typing_extensions import override

    setattr(typing, "override", override)  # noqa: B010
