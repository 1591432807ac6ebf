from engine.readers.fingerprints import digest


def test_digest_depends_on_every_text_and_their_borders():
    found = {digest(texts) for texts in (["a", "b"], ["ab"], ["b", "a"], ["a", "b", ""], [])}
    assert len(found) == 5
    assert digest(["a", "b"]) == digest(iter(["a", "b"]))
    assert len(digest(["\udcff"])) == 32
