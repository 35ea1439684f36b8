"""The methods: each module lists its stages; `METHODS` names them, and a module is imported when its method runs."""

from __future__ import annotations

from collections.abc import Mapping

METHODS: Mapping[str, str] = {
    "body": "backend.methods.body:stages",
    "portrait": "backend.methods.portrait:stages",
}
"""Method id to "module:function"; the function takes the request and the installed models, and returns the stages."""
