;; Grows its memory until it gets no more, which must be at 16 MiB with what the host took for arguments.
;; breaks: memory_mib
;; serves
(func $plan (param i32 i32) (result i32)
    (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (if (i32.ne (memory.size) (i32.const 256)) (then unreachable))
    (call $half_b))
