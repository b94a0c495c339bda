;; Takes all memory while deciding: what the host has for arguments stays.
;; serves
(func $route (param i32 i32 i32) (result i32)
    (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (call $good (local.get 1) (local.get 2)))
