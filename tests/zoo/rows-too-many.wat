;; Row 0 claims six of five columns; the others have no picks.
;; invalid: 4
;; rows: row 0: offsets 0 to 6 of 5 picks
(func $route (param i32 i32 i32) (result i32) (local $at i32)
    (loop $l
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (call $set_offset (local.get 2) (local.get $at) (i32.const 6))
        (br_if $l (i32.lt_u (local.get $at) (call $num_rows (local.get 1)))))
    (i32.const 0))
