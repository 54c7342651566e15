"""The lab's text template, and what understands rows under it."""

from phicli.config import QuantizeConfig
from phicli.dataset.contents import RowParser
from phicli.text import TextTemplate

LAB_TEMPLATE = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"
UNDER_IT = RowParser(template=TextTemplate(LAB_TEMPLATE))


def calibration(file=None, samples=16, seq_len=128, seed=0, text_template=None) -> QuantizeConfig:
    """Settings that say on what to calibrate."""
    return QuantizeConfig("tiny", calibration=file and str(file), samples=samples, seq_len=seq_len, seed=seed,
                          text_template=text_template)
