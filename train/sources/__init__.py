from train.sources.base import Entry as Entry
from train.sources.base import Source as Source
from train.sources.recognise import open_source as open_source
