;; No row has a usable pick.
;; rows: column 4294967295 of 5
(func $route (param i32 i32 i32) (result i32) (local $at i32)
    (loop $l
        (call $row (local.get 2) (local.get $at) (i32.const -1) (f32.const 1))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $at) (call $num_rows (local.get 1)))))
    (i32.const 0))
