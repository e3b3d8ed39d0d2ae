from train.data.sources.base import Entry as Entry
from train.data.sources.base import Source as Source
from train.data.sources.recognise import open_source as open_source
