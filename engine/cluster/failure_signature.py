"""The signature of an error: its type and the innermost frame of the user's code. Supervisors compare signatures."""

from engine.base.errors import ConvoyError
from engine.base.user_errors import error_chain, innermost_frame


def failure_signature(error: BaseException) -> str:
    """Returns `KeyError at perception.py:12 in loss`; only the type if no frame is in the user's code.

    Errors caused from outside (a lost peer, a signal) have no signature: "". In a chain of errors, the first error with
    such a frame counts, since later errors only wrap it.
    """
    if isinstance(error, ConvoyError) and error.from_outside:
        return ""
    frames = [frame for link in reversed(error_chain(error)) if (frame := innermost_frame(link))]
    return f"{type(error).__name__} at {frames[0]}" if frames else type(error).__name__
