;; Every second row is not a number.
;; invalid: 15
;; rows: row 29: column 1 has the weight NaN
(func $route (param i32 i32 i32) (result i32) (local $at i32)
    (loop $l
        (call $row (local.get 2) (local.get $at) (i32.const 1)
            (select (f32.const nan) (f32.const 0.5) (i32.and (local.get $at) (i32.const 1))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $at) (call $num_rows (local.get 1)))))
    (i32.const 0))
