//! One table of the sizes and times that shape Rewound, with the reason for each.

use std::time::Duration;

/// Raw bytes at which a segment may be cut (12 MiB): below it the cut would make too many objects.
pub const SEGMENT_MIN: usize = 12 << 20;
/// Raw bytes a segment aims at (16 MiB): about 5 MiB stored, a good size for one request to object
/// storage, and small enough that three in flight fit the memory bound.
pub const SEGMENT_TARGET: usize = 16 << 20;
/// Raw bytes at which a segment is cut wherever it stands (20 MiB), so that memory stays bounded.
pub const SEGMENT_MAX: usize = 20 << 20;
/// Raw bytes at which a list of hashes is cut (4 MiB): one more buffer that a backup fills all the
/// while, of bytes that hardly compress.
pub const HASH_LIST: usize = 4 << 20;
/// Raw bytes of one frame (512 KiB): what one `find` must fetch and decode; larger frames compress
/// less than 1 % better on JSON of 1 KB.
pub const FRAME: usize = 512 << 10;
/// Attachments smaller than this (1 MiB) are packed into segments; an object each would cost more
/// in requests than in bytes.
pub const ATTACHMENT_PACKED: usize = 1 << 20;
/// Attachments up to this (128 KiB) stand beside the change that tells of them in the log, until the log is rolled
/// up: a live backup would leave too many small objects else. Larger ones are objects of their own at once.
pub const ATTACHMENT_BESIDE: usize = 128 << 10;
/// Attachments up to this (4 KiB, all of one document together) are part of an entry of their document, and come
/// again with each change of it. To name one that is elsewhere takes about 300 bytes in each entry and 100 in
/// memory: less than a tenth of what is larger, but too much for icons and signatures, of which there are most.
pub const ATTACHMENT_INLINE: usize = 4 << 10;
/// Raw bytes of one part of a large attachment (16 MiB): bounds memory to a few parts in flight.
pub const PART: usize = 16 << 20;
/// Raw bytes a source should put into one batch (256 KiB): large enough that channel costs vanish.
pub const BATCH: usize = 256 << 10;
/// Documents a source should put into one batch at most.
pub const BATCH_DOCUMENTS: usize = 8192;
/// Batches that may wait between a source and the vault (8, so about 2 MiB).
pub const QUEUE: usize = 8;
/// The largest single document (48 MiB): three times MongoDB's, above what any supported engine
/// takes; larger input is refused before anything is written.
pub const DOCUMENT_MAX: usize = 48 << 20;
/// Raw bytes that a frame may claim when it is decoded: bounds decompression of hostile input.
pub const FRAME_MAX: usize = DOCUMENT_MAX + (16 << 20);
/// Keys of one group of key filters (16 million): while a backup runs they take 8 bytes each in a
/// temporary file.
pub const FILTER_KEYS: usize = 16 << 20;
/// Keys in one key filter (1 million): it is sorted and sealed in memory, about 16 MiB, and stores
/// about as many bytes as a segment.
pub const FILTER_SHARD_KEYS: usize = 1 << 20;
/// Keys that each of 64 buckets holds in memory (4096, so 2 MiB in all) before they go to the
/// temporary file, in writes of 32 KiB.
pub const FILTER_BUCKET: usize = 4096;
/// Segments named in one key filter (256): each partition repeats their table.
pub const FILTER_SEGMENTS: usize = 256;
/// Keys in one partition of a key filter (131,072): about 400 KiB, what one `find` reads.
pub const FILTER_PARTITION_KEYS: usize = 128 << 10;
/// Layers of one point after which the next backup stores everything again.
pub const LAYERS_MAX: usize = 64;
/// How often a run renews its sign of life in the vault.
pub const ACTIVE_RENEW: Duration = Duration::from_secs(60);
/// After this long without a sign of life a run counts as dead (24 h by the storage's clock):
/// longer than any suspended laptop or stuck upload that might come back.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// The longest that live changes wait for being written to local storage.
pub const FLUSH_LOCAL: Duration = Duration::from_secs(1);
/// The longest that live changes wait for being written to remote storage.
pub const FLUSH_REMOTE: Duration = Duration::from_secs(10);
/// Bytes of live changes that are written at once (8 MiB), however short they have waited: half of
/// what a segment holds, so that a burst makes objects of a good size.
pub const FLUSH_BYTES: usize = 8 << 20;
/// How often a live backup says that nothing has changed: a minute, so that an hour without changes
/// costs sixty small objects, which are then rolled up into one.
pub const HEARTBEAT: Duration = Duration::from_secs(60);
/// How often a live backup makes a point: an hour, which bounds what one restore reads of chains
/// whose runs died, and what is rolled up into one object.
pub const LIVE_POINT: Duration = Duration::from_secs(3600);
/// How often a source without a feed is compared anew in a live backup.
pub const LIVE_COMPARE: Duration = Duration::from_secs(60);
/// Stored bytes of changes since the last scan (256 MiB) that each restore may have to read beside
/// it, whatever the size of the source: a few seconds' worth.
pub const LOG_MIN: u64 = 256 << 20;
/// Beyond [`LOG_MIN`], the stored changes may come to the 8th part of what was scanned (not
/// compressed): about as much again as a third of the scan takes in the vault. Then a new scan is
/// cheaper than what each restore reads.
pub const LOG_SHARE: u64 = 8;

/// How long a thread for blocking work waits for more of it (20 ms). Each thread's allocator keeps some
/// megabytes of what was freed: with tokio's 10 s dozens of them stay, and take turns (measured: 100 MiB
/// more while 5 million changes are resolved).
pub const IDLE_THREAD: Duration = Duration::from_millis(20);
