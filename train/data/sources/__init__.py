"""Sources of labelled pictures: where they lie, and which class each is of."""

from train.data.sources.base import AS_IT_IS as AS_IT_IS
from train.data.sources.base import Entry as Entry
from train.data.sources.base import Reading as Reading
from train.data.sources.base import Source as Source
from train.data.sources.recognise import archive_of as archive_of
from train.data.sources.recognise import open_source as open_source
