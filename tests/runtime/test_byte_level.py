"""The alphabet, against the tokenizers library's."""

from tokenizers import pre_tokenizers

from cocomix.runtime.byte_level import bytes_of


def test_every_byte_has_the_librarys_character() -> None:
    spelled = [pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(byte)) for byte in range(128)]
    assert [bytes_of("".join(piece for piece, _ in pieces)) for pieces in spelled] == [bytes([b]) for b in range(128)]
    assert {bytes_of(character)[0] for character in pre_tokenizers.ByteLevel.alphabet()} == set(range(256))
    assert bytes_of("naïve 🙂") == "naïve 🙂".encode()
