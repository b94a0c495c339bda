;; Picks without weights: what lay there before is read, which is no harm.
;; tolerated
(func $route (param i32 i32 i32) (result i32) (local $at i32)
    (loop $l
        (call $set_column (local.get 2) (local.get $at) (i32.const 1))
        (call $set_offset (local.get 2) (i32.add (local.get $at) (i32.const 1)) (i32.add (local.get $at) (i32.const 1)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $at) (call $num_rows (local.get 1)))))
    (i32.const 0))
