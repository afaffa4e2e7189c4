"""Records: what every stage of the pipeline reads, whatever file it came from.

A record has an id and any of: a text, images, a conversation. `read_records` streams the records
of an input and hands back every entry that it refuses as a `Rejection`, so that nothing is lost
and nothing is silent. `load_image` turns an image source into RGB pixels.
"""

from revision.records.formats import Format, described_input, detect_format
from revision.records.image import load_image
from revision.records.input_file import InputFile
from revision.records.inputs import Inputs, input_files, input_text
from revision.records.read import SeenIds, Side, read_records
from revision.records.record import (
    IMAGE_MARK,
    ImageSource,
    Record,
    Rejection,
    Role,
    Turn,
    json_line,
)

__all__ = [
    "IMAGE_MARK",
    "Format",
    "ImageSource",
    "InputFile",
    "Inputs",
    "Record",
    "Rejection",
    "Role",
    "SeenIds",
    "Side",
    "Turn",
    "described_input",
    "detect_format",
    "input_files",
    "input_text",
    "json_line",
    "load_image",
    "read_records",
]
