"""Media files through PyAV in bounded memory: any video as constant 25 fps RGB, any sound as 16 kHz mono, mp4 out.

Times are counted from the start of the file (the earliest stream), so that pictures and sound stay together whatever
their containers' offsets are. `af.data.container` opens files, `af.data.video` and `af.data.audio` read them,
`af.data.video_writer` writes them.
"""

from __future__ import annotations

from af.data.audio import fit_audio, read_audio
from af.data.container import MediaError, MediaInfo, probe
from af.data.video import iter_video, read_video
from af.data.video_writer import write_video

__all__ = ["MediaError", "MediaInfo", "fit_audio", "iter_video", "probe", "read_audio", "read_video", "write_video"]
