from recsys_moe.errors import RequestError


def test_a_line_ends_in_one_stop_whatever_the_last_word_is() -> None:
    for got in ("none", "none.", "what?"):
        line = str(RequestError("x", wanted="y", got=got))

        assert line == f"x: wanted y, got {got.rstrip('.')}{'' if got == 'what?' else '.'}"
