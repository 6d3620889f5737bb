"""ModelOutput: by attribute, by name, by position."""

import pytest
import torch

from fastspeech.outputs import Seq2SeqLMOutput


def test_absent_fields_have_no_name_and_no_position() -> None:
    logits, hidden = torch.zeros(1), torch.ones(2)
    output = Seq2SeqLMOutput(logits=logits, encoder_last_hidden_state=hidden)
    assert output.logits is output["logits"] is output[0] is logits
    assert output[1] is output[-1] is hidden and output[:1] == (logits,)
    assert list(output) == list(output.keys()) == ["logits", "encoder_last_hidden_state"]
    assert output.to_tuple() == (logits, hidden) and len(output) == 2
    assert output.loss is None and "loss" not in output and output.get("loss") is None
    assert dict(**output) == {"logits": logits, "encoder_last_hidden_state": hidden}
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(KeyError):
        output["to_tuple"]
    with pytest.raises(IndexError):
        output[2]
