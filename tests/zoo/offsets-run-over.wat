;; Writes offsets for a thousand rows, over the picks.
;; rows: offsets
(func $route (param i32 i32 i32) (result i32) (local $at i32)
    (loop $l
        (call $set_offset (local.get 2) (local.get $at) (i32.sub (i32.const 3000) (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $at) (i32.const 1000))))
    (i32.const 0))
