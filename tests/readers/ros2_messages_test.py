from engine.readers.message_arrays import Field
from engine.readers.ros2_messages import Ros2Messages

LINE = "=" * 80


def test_definition_with_comments_constants_and_types_of_other_packages():
    text = f"""
# uint8 comment
uint8 A = 1
int8\tx 3  # a default
string<=5[<=2] names
Point[3] corners
other/P[] points
builtin_interfaces/Duration age
{LINE}
MSG: pkg/Point
float32 x
{LINE}
MSG: other/msg/P
bool valid
"""
    duration = (Field("sec", "int32"), Field("nanosec", "uint32"))
    assert Ros2Messages("pkg/msg/A", text.encode()).fields == (
        Field("x", "int8"),
        Field("names", "text", is_list=True),
        Field("corners", (Field("x", "float32"),), is_list=True, size=3),
        Field("points", (Field("valid", "bool"),), is_list=True),
        Field("age", duration),
    )


def test_negative_duration_whose_type_is_not_in_the_log():
    decode = Ros2Messages("pkg/msg/A", b"builtin_interfaces/Duration age")
    found = decode(bytes([0, 1, 0, 0]) + (-3).to_bytes(4, "little", signed=True) + (7).to_bytes(4, "little"))
    assert (found["age"]["sec"], found["age"]["nanosec"]) == (-3, 7)


def test_type_without_fields_is_an_empty_dict():
    assert Ros2Messages("std_msgs/msg/Empty", b"# nothing").__call__(bytes(5)) == {}
