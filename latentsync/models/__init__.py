"""The networks of the system. Parameter names are those of the published checkpoints. Third-party networks are in
`latentsync.pretrained`.

Letters of tensor dimensions, in the whole of latentsync:

    B  batch, N  images, K  samples that a loss counts
    F  frames of a window (training) or of a chunk (inference), T  frames, rows or columns of a whole clip
    C  channels, H W  height and width, R  side of a face in pixels, h  side of a latent map in cells
    S  audio tokens of a frame, L  Whisper layers, M  mel bands, D  width of features or embeddings

Terms for spans of time: a clip is a file of training data; a window is a sequence of consecutive frames that a
network takes at once; a chunk is the frames that inference denoises together; a segment is a part of a source video
that becomes a clip; a run is one training.
"""
